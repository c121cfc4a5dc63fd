"""What endpoints read and write beside plain text: sampling fields, tools, formats, responses, OpenAPI."""
