"""The texts of `lake demo`: comments on an imaginary shop, and what the installed packages say of themselves."""
