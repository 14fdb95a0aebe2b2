ID = "x"
TITLE = ""
