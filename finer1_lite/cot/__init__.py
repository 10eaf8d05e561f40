"""Stage 1's data: concepts that tell an image apart, a teacher's chains, their quality control."""
