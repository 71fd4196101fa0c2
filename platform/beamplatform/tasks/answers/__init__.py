"""Finding an answer in a text and comparing answers: pure functions, used by the tasks."""
