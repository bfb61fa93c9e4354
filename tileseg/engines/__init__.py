"""Who does it: workers on devices, in this process or on a Ray cluster."""
