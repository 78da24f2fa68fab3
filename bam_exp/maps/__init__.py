"""Pictures of what the attentions of a finished run attend to, and how that relates to where the object is."""
