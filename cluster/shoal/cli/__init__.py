"""The command `shoal`: what operators and newcomers type."""
