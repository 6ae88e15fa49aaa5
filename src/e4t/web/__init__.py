"""The web page: `studio` holds models and concepts, `page` shows them."""
