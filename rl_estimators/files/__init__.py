"""What every command that reads files needs: lines of JSON, what is wrong with them, names for a terminal, whole files out."""
