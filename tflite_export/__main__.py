"""`python -m tflite_export`."""

from tflite_export.cli import main

raise SystemExit(main())
