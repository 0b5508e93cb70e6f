"""The viewer: scenes in a browser, rendered for each client's camera."""
