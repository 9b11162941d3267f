"""From rows as read to rows that can be trusted: survey, pictures, validation, and what came of it."""
