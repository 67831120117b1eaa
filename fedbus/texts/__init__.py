"""What a message says to people: a title, one line, a link, and who and what it is about."""
