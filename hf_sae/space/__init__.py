"""The Gradio Space: find features, understand them, look at text; the same functions as an API and as MCP tools."""
