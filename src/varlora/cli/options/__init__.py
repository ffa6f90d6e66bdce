"""What each command is asked, one module per command; none of them imports torch."""
