"""A report as one page for people: `report.html`."""
