"""The steps of a whole job, its record and its verdict."""
