"""What an app needs beside a file: metadata, a bundle for Android, arrays for microcontrollers."""
