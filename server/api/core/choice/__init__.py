"""The choice of adapters: as requests ask for it, as a router makes it, as replies tell it."""
