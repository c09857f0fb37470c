"""Does one user's work slow another's? A hot model beside loads, long prompts, leavers."""
