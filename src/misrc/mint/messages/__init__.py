"""What MInt's side says to people, in English and Japanese."""
