"""How does a text become terms, the same for a passage and for a question?"""
