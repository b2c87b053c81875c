"""A router in front of Chutes.ai that speaks the OpenAI chat completions protocol."""
