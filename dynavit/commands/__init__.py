"""Each command as a Python function. What it needs beyond torch and timm is imported when it is called."""
