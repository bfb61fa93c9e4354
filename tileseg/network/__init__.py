"""The network: from strips of pixels to labels, on one device."""
