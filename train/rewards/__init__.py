"""What a drawn picture is worth, as functions of prompts, pictures and the scenes that were asked for."""
