"""Files, folders and tables that are read with every check and written whole or not at all, and text about them."""
