"""Two small studies: which training through a selection is stable, and how well each selector learns."""
