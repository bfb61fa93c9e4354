"""Other libraries at the same job, each as its own documentation would have it.

Every module here is a program for the Python of `requirements/peers.txt`.
"""
