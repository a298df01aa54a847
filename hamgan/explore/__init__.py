"""A page to play with a snapshot: `explorer` draws, `figures` writes HTML, `page` joins them to Gradio, `server` serves."""
