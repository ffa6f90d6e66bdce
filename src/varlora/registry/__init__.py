"""Things by name: what varlora, a program or an installed package registers, and options declared as fields."""
