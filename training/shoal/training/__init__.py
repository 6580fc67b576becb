"""Makes the models that Shoal serves. The only home of torch; serving imports nothing from here."""
