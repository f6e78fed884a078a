"""Taking part in rounds: the one part of the SDK that needs torch and Flower, in processes of their own."""
