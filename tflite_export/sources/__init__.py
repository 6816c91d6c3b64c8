"""What is converted, whatever the user has: models, files, folders, functions, and data for them."""
