"""Other people's way to do the same thing, written with the same care."""
