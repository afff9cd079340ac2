"""Admin."""
ROUTES = []
