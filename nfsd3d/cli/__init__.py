"""Command-line entry points: one module per subcommand, and the argument types that they share."""
