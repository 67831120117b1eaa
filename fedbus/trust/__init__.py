"""Who signed, who checks, and who may say what."""
