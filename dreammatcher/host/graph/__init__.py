"""The values that the host hands from node to node: pictures, masks, files, records, messages."""
