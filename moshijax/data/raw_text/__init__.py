"""Raw text of any source to files of one document a line: `moshijax data text`."""
