"""Views and changes of the store's experts, for the admin API."""
