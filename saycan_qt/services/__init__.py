"""Services as processes: started, watched, reached, closed to strangers."""
