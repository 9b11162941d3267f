"""Made pictures: the world they show, how they are drawn, what is said of them, and the tasks asked."""
