"""Neighbours to predictions: penalties, voting, and the recognizer that joins the parts."""
