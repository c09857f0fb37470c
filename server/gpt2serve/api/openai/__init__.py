"""OpenAI's completions API: `POST /v1/completions` and `GET /v1/models`, for its clients."""
