"""One command per published claim: runs the arms, writes the table and the figure."""
