"""OpenAI's dialect: completions, chat completions, responses, embeddings, models, tokenization."""
