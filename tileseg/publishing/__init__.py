"""How results appear: whole or not at all, in folders and object stores."""
