"""Pictures with names, wherever they come from: reading, splitting, judging, and files of other projects."""
