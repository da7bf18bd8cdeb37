"""The page of `sscl report`: sections from what runs wrote, the gallery of tiles, and how it looks and works."""
