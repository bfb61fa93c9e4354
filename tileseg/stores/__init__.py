"""Where files are kept: folders, object stores, web servers; and locks there."""
