"""What both services are made of."""
