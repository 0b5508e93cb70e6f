"""Images, turntables, charts and the HTML report."""
